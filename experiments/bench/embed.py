"""Suite `embed`: a folder of pictures to embeddings, end to end, beside a PyTorch loop.

Both are processes of their own that read the same checkpoint and write one file. The PyTorch
program: DataLoader with a worker a core, the official transform, `inference_mode`, the tower alone.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.bench import pictures as bench_pictures
from experiments.bench.cold import ROOT
from experiments.bench.pairs import Program, SuiteFlags, compared, program, say
from jaxclip.cli.usage import Positive

THEIRS = """
import sys
import numpy as np
import torch
from pathlib import Path
from PIL import Image
from experiments.lib.peers.official_run import package
from experiments.lib.peers.parity_support import official_transform

clip = package()
class Pictures(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.files, self.transform = sorted(Path(folder).glob("*.jpg")), official_transform(224)
    def __len__(self):
        return len(self.files)
    def __getitem__(self, i):
        return self.transform(Image.open(self.files[i]))
archive, folder, out, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
state = torch.jit.load(archive, map_location="cpu").eval().state_dict()
model = clip.model.build_model(state).float()
loader = torch.utils.data.DataLoader(Pictures(folder), batch_size=32, num_workers=workers)
with torch.inference_mode():
    parts = [model.encode_image(images) for images in loader]
embeds = torch.cat(parts)
np.save(out, (embeds / embeds.norm(dim=-1, keepdim=True)).numpy())
"""


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    pictures: tuple[Positive, ...] = (10_000,)
    photos: Path | None = None
    """a folder of photographs to cut pieces from"""
    files: Path | None = None
    """a folder for the models, kept (1.3 GB)"""


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """A row a number of pictures; its peaks of memory show whether memory grows with them."""
    with tempfile.TemporaryDirectory() as scratch:
        files = flags.files or Path(scratch)
        archive = files / "traced.pt"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAXCLIP_CACHE": f"{scratch}/cache"}
        if not archive.is_file():
            program(
                ["-m", "experiments.lib.peers.official_run", "make", str(files)],
                str(ROOT),
                environment,
            )
        for count in flags.pictures:
            folder = Path(scratch) / str(count)
            say(f"making {count} pictures")
            bench_pictures.make(folder, count, flags.photos)
            out = f"{scratch}/out.npz"
            ours = ["-m", "jaxclip", "embed", str(folder), "--out", out, "--model", str(archive)]
            ours += ["--policy", "official", "--force"]
            workers = str(os.cpu_count())
            theirs = ["-c", THEIRS, str(archive), str(folder), f"{scratch}/out.npy", workers]
            done: dict[str, list[Program]] = {"jaxclip": [], "PyTorch loop": []}
            for turn in range(flags.pairs):
                for side, command in list(zip(done, (ours, theirs), strict=True))[
                    :: -1 if turn % 2 else 1
                ]:
                    done[side].append(program(command, str(ROOT), environment))
                    say(f"{side}: {done[side][-1].wall:.1f} s, {done[side][-1].peak:.0f} MiB")
            seconds = {side: [p.seconds for p in each] for side, each in done.items()}
            row = compared({"what": "embed a folder", "pictures": count}, seconds)
            row["measured"] = {
                f"{name}, {side}": round(value)
                for side, each in done.items()
                for name, value in (
                    ("pictures a second", count / row["wall s"][side]),
                    ("peak MiB", max(p.peak for p in each)),
                )
            }
            yield row
