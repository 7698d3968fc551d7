"""`rlhf demo`: the whole of RLHF on a small task whose true preference is known, with every service as a local process."""
