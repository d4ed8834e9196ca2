"""Papers' experiments as commands: each claim of a paper is tested by a result file and gets a computed verdict."""
