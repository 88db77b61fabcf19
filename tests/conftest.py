from __future__ import annotations

import pytest
from hypothesis import settings

# A test that is slow because the machine is busy is no failure.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # A test that forgets to name a folder must not write into the checkout.
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
