"""Recall and memory: what models of sequences keep of what they read, for how long, and after how many updates."""
