"""How small models learn Markov chains: plateaus, escapes, induction heads (see the README for the papers)."""
