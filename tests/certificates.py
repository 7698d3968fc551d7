"""Certificates for tests, made with the openssl command: an authority, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from rlhf_services.common.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in a folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        """Makes one: ca.crt and ca.key in the folder, which is made too."""
        folder.mkdir()
        _openssl(folder, "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority"
                 " -keyout ca.key -out ca.crt")  # fmt: skip
        return cls(folder)

    def issue(self, folder: Path, *names: str) -> dict[str, str]:
        """Writes tls.crt, tls.key and ca.crt into a folder, over what is there; returns the variables that name them.

        Args: names: such as "DNS:localhost" and "IP:127.0.0.1".
        """
        folder.mkdir(exist_ok=True)
        (folder / "names").write_text(f"subjectAltName={','.join(names)}")
        _openssl(folder, "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=service"
                 " -keyout tls.key -out request")  # fmt: skip
        authority = f"-CA {self.folder}/ca.crt -CAkey {self.folder}/ca.key -CAcreateserial"
        _openssl(folder, f"x509 -req -in request -days 1 {authority} -extfile names -out tls.crt")
        (folder / "ca.crt").write_bytes((self.folder / "ca.crt").read_bytes())
        return {
            CERT_VARIABLE: str(folder / "tls.crt"),
            KEY_VARIABLE: str(folder / "tls.key"),
            CA_VARIABLE: str(folder / "ca.crt"),
        }


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
