"""The deployables: policy, reward, reference and trainer, talking gRPC by the contracts in protos/."""
