from blake3 import blake3

from rlhf.weights import TensorInfo, WeightsManifest, tensor_digest

A = TensorInfo("a", "BF16", (2, 3), tensor_digest(b"a" * 12))
B = TensorInfo("b", "F32", (), tensor_digest(b"b" * 4))


def test_the_digest_is_that_of_the_sorted_lines_in_the_contract():
    lines = f"a BF16 2,3 {blake3(b'a' * 12).hexdigest()}\nb F32  {blake3(b'b' * 4).hexdigest()}\n"
    assert WeightsManifest((B, A)).digest == blake3(lines.encode()).hexdigest()


def test_the_digest_does_not_depend_on_order_but_on_every_field():
    digest = WeightsManifest((A, B)).digest
    assert WeightsManifest((B, A)).digest == digest
    for other in (
        TensorInfo("c", A.dtype, A.shape, A.digest),
        TensorInfo("a", "F16", A.shape, A.digest),
        TensorInfo("a", A.dtype, (3, 2), A.digest),
        TensorInfo("a", A.dtype, A.shape, B.digest),
    ):
        assert WeightsManifest((other, B)).digest != digest


def test_sizes_count_bytes():
    assert (A.num_bytes, B.num_bytes, WeightsManifest((A, B)).num_bytes) == (12, 4, 16)  # 6 * 2; 1 * 4
