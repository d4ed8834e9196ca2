"""Distillation: objectives of classification compared on digits, and exact figures of the divergences."""
