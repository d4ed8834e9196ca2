"""State space models on the scan core: so far Mamba's mixer, `ssm.mamba.Mamba`."""
