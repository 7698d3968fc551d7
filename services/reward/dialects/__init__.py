"""The reward service over HTTP: JSON of our own, and the wire formats that other systems already speak."""
