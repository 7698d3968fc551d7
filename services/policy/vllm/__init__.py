"""The vLLM engine, and what runs inside vLLM's own processes."""
