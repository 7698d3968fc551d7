"""`rlhf demo`: the whole of RLHF on a small task whose true preference is known. Start reading at demo.py."""
