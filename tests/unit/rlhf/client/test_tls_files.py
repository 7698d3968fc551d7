"""Which settings of mutual TLS are refused, and how that is said."""

import pytest
import trustme

from rlhf.client.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE, TlsFiles, tls_files
from rlhf.errors import ConfigError
from tests.support.certificates import issue


def test_it_is_off_while_no_variable_is_set():
    assert tls_files({}) is None
    assert tls_files({CERT_VARIABLE: "", KEY_VARIABLE: "", CA_VARIABLE: ""}) is None


def test_a_missing_variable_is_named():
    with pytest.raises(
        ConfigError, match=rf"{CERT_VARIABLE} and {CA_VARIABLE} is set, but not {KEY_VARIABLE}; set all three"
    ):
        tls_files({CERT_VARIABLE: "a", CA_VARIABLE: "c"})


@pytest.fixture
def files(tmp_path) -> TlsFiles:
    found = tls_files(issue(trustme.CA(), tmp_path / "tls", "localhost"))
    assert found is not None
    return found


def test_whole_files_are_read(files):
    assert files.read() == (files.cert.read_bytes(), files.key.read_bytes(), files.ca.read_bytes())


@pytest.mark.parametrize(("field", "variable"), [("cert", CERT_VARIABLE), ("key", KEY_VARIABLE), ("ca", CA_VARIABLE)])
def test_a_file_that_is_not_there_is_named_with_its_variable(files, field, variable):
    path = getattr(files, field)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"{variable} is '{path}', which cannot be read \(No such file"):
        files.read()


def test_a_key_of_another_certificate_is_refused(files, tmp_path):
    issue(trustme.CA(), tmp_path / "others", "localhost")
    files.key.write_bytes((tmp_path / "others/tls.key").read_bytes())
    with pytest.raises(ConfigError, match=r"are not a certificate and its key, .*KEY_VALUES_MISMATCH"):
        files.read()


def test_an_authority_that_is_no_certificate_is_refused(files):
    files.ca.write_text("nothing")
    with pytest.raises(ConfigError, match=rf"{CA_VARIABLE} '.*' holds no certificate in PEM"):
        files.read()
