"""RLHF as services: policy, reward, reference and trainer, talking gRPC by the contracts in protos/."""

if __name__ != "rlhf_services":
    raise ImportError(
        "this folder is the package rlhf_services: pip install -e . and `import rlhf_services`, not `services`"
    )
