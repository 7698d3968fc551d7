"""HTTP beside gRPC, in the same process: bodies, calls, errors and the server."""
