"""The kernels that `make kernels` compiles, and the compilers of both targets, neither of which needs its hardware."""
