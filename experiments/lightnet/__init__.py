"""Results on LightNet, "You Only Scan Once" (arXiv 2405.21022); see the README beside."""
