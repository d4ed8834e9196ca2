"""What a training would need on chips that are not there: compiled for them, counted, and estimated.

`trainings` writes down what a result would train, with `stand_ins` for data sets that are not here, `hardware` knows
chips, `operations` counts what a program multiplies, `collectives` what its chips send each other, and `traffic` what a
chip reads and writes. `plan` puts them together, `search` and `table` make several of them, `report` tells.
"""
