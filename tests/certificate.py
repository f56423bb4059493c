"""A self-signed certificate for localhost, valid for a hundred years: for these tests only."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBiDCCAS+gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJUcBBLcp5o/vM2g
IE1X8m4Cz29fbvEBIty7gtsZQeASm9NoB489CS9G8k6u/MuKUtW6vEt8JW7gDu2I
1w86IzajcDBuMCwGA1UdEQQlMCOCCWxvY2FsaG9zdIcEfwAAAYcQAAAAAAAAAAAA
AAAAAAAAATAOBgNVHQ8BAf8EBAMCAoQwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4E
FgQUKj/5JJDwf6FpwEh7uUSE539N8CowCgYIKoZIzj0EAwIDRwAwRAIgNX8mjSVY
jdI9BuPQdjLES/qTJ81DVENDgZZYFrmUmX4CIC/TljxZvDWfAKfBBOWW8yFAnvOU
bRrNUDV5tQs0i2cC
-----END CERTIFICATE-----
"""

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglBEQCnrzGPMoUU1i
b7n+Zt2EKRbm13ucZNquRBkfeP2hRANCAASVHAQS3KeaP7zNoCBNV/JuAs9vX27x
ASLcu4LbGUHgEpvTaAePPQkvRvJOrvzLilLVurxLfCVu4A7tiNcPOiM2
-----END PRIVATE KEY-----
"""


@contextlib.contextmanager
def files() -> Iterator[tuple[str, str]]:
    """The names of two files, with the certificate and with its key, while the body runs."""
    with tempfile.TemporaryDirectory() as folder:
        chain = pathlib.Path(folder, "certificate.pem")
        key = pathlib.Path(folder, "key.pem")
        chain.write_text(CERTIFICATE)
        key.write_text(KEY)
        yield str(chain), str(key)
