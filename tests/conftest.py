import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long something takes on a machine that is busy says nothing about the code.
settings.register_profile("busy", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# There is a test process per core: a second thread of PyTorch would wait for the other process at every operation.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402 - it reads that number when it is imported

HAS_GPU = torch.cuda.is_available()
# Without a GPU, Triton interprets its kernels. It wants to know before it is imported, which PyTorch may do any time.
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a GPU is skipped without one, where kernels are interpreted: both by one look at the machine."""
    for item in items:
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data files other people made, beside the project; tests that want them are skipped without them."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The address of an empty prefix of a bucket; whoever opens it finds the server through the environment."""
    import boto3
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="corpora")
    return f"s3://corpora/{request.node.name}"


@pytest.fixture
def upload() -> Callable[[Path, str], None]:
    """Copy a folder to an address."""
    import boto3

    def copy(folder: Path, address: str) -> None:
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        for path in folder.rglob("*"):
            if path.is_file():
                boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")

    return copy
