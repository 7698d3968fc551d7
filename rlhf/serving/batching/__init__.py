"""Many callers' items in few forward passes, fair between the callers. No torch, no gRPC."""
