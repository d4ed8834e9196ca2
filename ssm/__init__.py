"""State space models: S4, S5, Mamba and their theory. Nothing is public yet; the name is reserved in the wheel."""
