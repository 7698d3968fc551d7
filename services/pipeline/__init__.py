"""All phases of RLHF as one restartable run: `rlhf pipeline run pipeline.toml`."""
