"""The command demo: a local page."""

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxclip.cli.search_folder import PictureFolder, open_index
from jaxclip.cli.shared import (
    UsageError,
    load_model,
    open_model,
    print_line,
    require_whole_flag,
    warn_embedded,
)

IndexFlag = Annotated[Path | None, tyro.conf.arg(name="index")]
EXAMPLES = ("rocket", "cat face", "bicycle", "hot beverage", "umbrella", "key")  # drawings


def demo(
    model: str = "emoji",
    folder: Path | None = None,
    index: IndexFlag = None,
    update: bool = True,
    port: int = 7860,
) -> int:
    """Open a local page: classify, search a folder, see where a model looks, compare.

    The page is for this machine only (127.0.0.1) and works without a network; nothing is sent
    anywhere. Ctrl-C ends it. It needs gradio: pip install 'jaxclip[demo]'

    For example:
        jaxclip demo
        jaxclip demo --folder PHOTOS --model ViT-B/32
        jaxclip demo --folder /media/camera --index ~/camera-index --port 8000

    Args:
        model: "emoji" (the embedded model), a released model's name, a run folder or a
            checkpoint file.
        folder: A folder of pictures to search; it is indexed first, as by `jaxclip index`.
        index: A folder for the index, instead of .jaxclip beside the pictures.
        update: Look for new and changed files in the folder first.
        port: Where the page is served, at http://127.0.0.1:PORT; 0 is any free port.
    """
    require_whole_flag("--port", port, 0, 65535)
    if index is not None and folder is None:
        raise UsageError("--index: expected --folder PHOTOS with it, got none; give both")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("expected the package gradio, got none; pip install 'jaxclip[demo]'")
    from jaxclip.demo.answers import Answers, Photos
    from jaxclip.demo.serve import open_socket, serve
    from jaxclip.models.clip import Clip

    opened = open_socket(port)
    photos = None
    if folder is None:
        arrays = open_model(model)
    else:
        pictures = PictureFolder(folder, index, model)
        with open_index(pictures, update):
            photos = Photos(pictures.pictures, pictures.where, pictures.key)
        arrays = pictures.opened
    clip, preprocess = load_model(arrays, of=model)
    if not isinstance(clip, Clip):
        raise ValueError(f"{model}: expected a model of pictures and texts, got one of its towers")
    answers = Answers(clip, preprocess, photos)
    warn_embedded(model)

    def make(uploads: Path) -> Any:
        from jaxclip.demo.page import build_page, make_app

        return make_app(build_page(answers, model, _write_examples(uploads)))

    serve(opened, make, lambda address: print_line(f"{address}  (Ctrl-C ends it)"))
    return 0


def _write_examples(folder: Path) -> list[str]:
    """Paths of drawings of the embedded set, written to a folder."""
    from PIL import Image

    from jaxclip.data.emoji.pictures import load_emoji
    from jaxclip.evaluation.plots import on_white

    drawings = load_emoji("test")
    paths = []
    for name in EXAMPLES:
        pixels = on_white(drawings.images[drawings.names.index(name)])
        path = folder / f"{name.replace(' ', '-')}.png"
        Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return paths
