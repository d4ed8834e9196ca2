"""Distillation objectives as pure functions of logits. Nothing is public yet; the name is reserved in the wheel."""
