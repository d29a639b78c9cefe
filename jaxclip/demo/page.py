"""The page itself, in gradio: what stands in each tab, and which answer it shows."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from jaxclip.demo import html
from jaxclip.demo.answers import MOST_CELLS, Answers, lines, overlay
from jaxclip.search.classified_page import label_bars, remarks
from jaxclip.search.page import escaped

LABELS = "cat face\nrocket\nbicycle\nhot beverage"
MOST_SHOWN = 20  # labels
LARGEST_UPLOAD = "100mb"
METHODS = (
    "Brighter is more, over what the model sees of the picture. Relevance: Grad-CAM (Selvaraju et "
    "al. 2017) of the cosine of picture and words. Attention: the mean of all heads; of all "
    "blocks: rollout (Abnar and Zuidema 2020)."
)
REFUSALS = (ValueError, OSError, MemoryError, RuntimeError)  # jax's own are RuntimeErrors


def _upload(payload: Any) -> str | None:
    """The path of an uploaded file: ours opens it, and refuses it in one line."""
    return None if payload is None else str(payload.path)


def told(answer: Callable[..., str]) -> Callable[..., tuple[str, str]]:
    """`answer` for a page: (the HTML that it returns, one line about what is wrong)."""

    def call(*given: Any) -> tuple[str, str]:
        try:
            return answer(*given), ""
        except REFUSALS as error:
            return "", html.problem(str(error) or type(error).__name__)

    return call


def _picture(label: str, examples: Sequence[str], value: str | None = None) -> Any:
    sources: Any = ["upload", "clipboard"]
    picture: Any = gr.Image(value, label=label, sources=sources, height=260, buttons=[])
    # Not a subclass: gradio would write a stub of it beside this file.
    picture.preprocess = _upload
    if examples:
        gr.Examples([[path] for path in examples], picture, label="or one of these")
    return picture


def _show(answer: Callable[..., str], given: Sequence[Any], *also: Any) -> None:
    """Show an answer here, and again when a field changes; the last change wins.

    also: further events, such as that the page is opened.
    """
    problem, shown = gr.HTML(), gr.HTML()
    gr.on(
        [*(field.change for field in given), *also],
        told(answer),
        list(given),
        [shown, problem],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def build_page(answers: Answers, name: str, examples: Sequence[str]) -> Any:
    """The gradio page.

    Args:
      answers: what the tabs show.
      name: of the model, for the heading.
      examples: paths of pictures to choose from, in the folder of uploads.
    """
    with gr.Blocks(analytics_enabled=False, title="jaxclip demo", fill_width=True) as page:
        gr.HTML(f"<h2>jaxclip: {escaped(name)}</h2>")
        with gr.Tab("Classify"):
            _classify_tab(answers, examples, page.load)
        with gr.Tab("Search"):
            _search_tab(answers)
        with gr.Tab("What does it look at?"):
            _look_tab(answers, examples)
        with gr.Tab("Compare"):
            _compare_tab(answers)
    return page


def _classify_tab(answers: Answers, examples: Sequence[str], opened: Any) -> None:
    def classify(path: Any, labels: Any, prompts: Any) -> str:
        row = answers.classify(path, labels, prompts)
        return label_bars(row.labels[:MOST_SHOWN]) + remarks(row)

    with gr.Row():
        with gr.Column():
            picture = _picture("Picture", examples, examples[0])
        with gr.Column():
            labels = gr.Textbox(LABELS, label="Labels, one a line", lines=5)
            prompts = gr.Textbox("{}", label="Prompts with a slot {} each, one a line", lines=2)
            _show(classify, [picture, labels, prompts], opened)


def _search_tab(answers: Answers) -> None:
    if answers.photos is None:
        gr.HTML("<p>Start with <code>--folder PHOTOS</code> to search a folder of pictures.</p>")
        return
    root = answers.photos.pictures

    def search(*given: Any) -> str:
        return html.found_pictures(answers.search(*given), root)

    with gr.Row():
        with gr.Column(scale=1):
            words = gr.Textbox(label="Words, one text a line", lines=1)
            minus = gr.Textbox(label="Less these words", lines=1)
            picture = _picture("And a picture", [])
            weight = gr.Slider(-1, 1, 1, step=0.1, label="Weight of the picture (-1: less it)")
            count = gr.Slider(1, 60, 12, step=1, label="Pictures to show")
        with gr.Column(scale=2):
            _show(search, [words, picture, weight, minus, count])


def _look_tab(answers: Answers, examples: Sequence[str]) -> None:
    def look(path: Any, words: Any) -> str:
        return html.overlays([(overlay(x), x.name) for x in answers.look(path, words)])

    with gr.Row():
        with gr.Column(scale=1):
            picture = _picture("Picture", examples)
            words = gr.Textbox(label="Words", lines=1)
            gr.HTML(f"<p>{METHODS}</p>")
        with gr.Column(scale=2):
            _show(look, [picture, words])


def _compare_tab(answers: Answers) -> None:
    def compare(paths: Any, texts: Any) -> str:
        paths = [Path(path) for path in paths or []]
        return html.heat_map(paths, lines(texts), answers.matrix(paths, texts))

    with gr.Row():
        with gr.Column(scale=1):
            pictures = gr.File(
                label=f"Pictures, at most {MOST_CELLS}",
                file_count="multiple",
                type="filepath",
                height=220,
            )
            captions = gr.Textbox(LABELS, label="Captions, one a line", lines=5)
        with gr.Column(scale=2):
            _show(compare, [pictures, captions])


def make_app(page: Any) -> Any:
    """The page as an ASGI application; nothing of this machine is served but uploads."""
    from fastapi import FastAPI

    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        server_name="127.0.0.1",
        allowed_paths=[],
        blocked_paths=[os.getcwd()],
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        footer_links=[],
        theme=theme,
        css=html.STYLE,
    )
    page.is_running = page.has_launched = True  # else gradio does not check the paths it is given
    return app
