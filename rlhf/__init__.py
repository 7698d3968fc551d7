"""RLHF as microservices: the library that the services are made of, and that other programs import."""
