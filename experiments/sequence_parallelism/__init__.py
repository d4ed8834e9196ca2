"""Sequences longer than a device holds: what splitting them over devices allows, and which split pays for which."""
