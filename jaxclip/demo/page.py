"""The page itself, in gradio: what stands in each tab, and which answer it shows."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from jaxclip.demo import html
from jaxclip.demo.answers import MOST_CELLS, Answers, lines, overlay

LABELS = "cat face\nrocket\nbicycle\nhot beverage"
LARGEST_UPLOAD = "100mb"
REFUSALS = (ValueError, OSError, MemoryError, RuntimeError)  # jax's own are RuntimeErrors


class Picture(gr.Image):
    """`gr.Image` that hands over the file as it was uploaded: ours opens it, and refuses it."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The path of the upload, or None."""
        return None if payload is None else payload.path


def told(answer: Callable[..., Any], blank: Any) -> Callable[..., tuple[Any, str]]:
    """`answer` for a page: (what it returns, or `blank`; one line about what is wrong)."""

    def call(*given: Any) -> tuple[Any, str]:
        try:
            return answer(*given), ""
        except REFUSALS as error:
            return blank, html.problem(str(error) or type(error).__name__)

    return call


def _picture(label: str, examples: Sequence[str], value: str | None = None) -> Any:
    sources: Any = ["upload", "clipboard"]
    picture = Picture(value, label=label, sources=sources, height=300, image_mode=None, buttons=[])
    if examples:
        gr.Examples([[path] for path in examples], picture, label="or one of these")
    return picture


def _connect(
    answer: Callable[..., Any], given: Sequence[Any], shown: Any, blank: Any = None
) -> Any:
    """Show the answer whenever one of the fields changes; the last change wins."""
    problem = gr.HTML()
    gr.on(
        [field.change for field in given],
        told(answer, blank),
        list(given),
        [shown, problem],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    return problem


def build_page(answers: Answers, name: str, examples: Sequence[str]) -> Any:
    """The gradio page.

    Args:
      answers: what the tabs show.
      name: of the model, for the heading.
      examples: paths of pictures to choose from, in the folder of uploads.
    """
    first = examples[0] if examples else None
    with gr.Blocks(analytics_enabled=False, title="jaxclip demo") as page:
        gr.HTML(f"<h2>jaxclip: {html.escaped(name)}</h2>")
        with gr.Tab("Classify"):
            _classify_tab(page, answers, examples, first)
        with gr.Tab("Search"):
            _search_tab(answers)
        with gr.Tab("What does it look at?"):
            _look_tab(answers, examples)
        with gr.Tab("Compare"):
            _compare_tab(answers)
    return page


def _classify_tab(page: Any, answers: Answers, examples: Sequence[str], first: str | None) -> None:
    with gr.Row():
        with gr.Column():
            picture = _picture("Picture", examples, first)
        with gr.Column():
            labels = gr.Textbox(LABELS, label="Labels, one a line", lines=5)
            prompts = gr.Textbox("{}", label="Prompts with a slot {} each, one a line", lines=2)
            shown = gr.Label(label="Probability of each label", num_top_classes=10)
            problem = _connect(answers.classify, [picture, labels, prompts], shown)
    page.load(
        told(answers.classify, None),
        [picture, labels, prompts],
        [shown, problem],
        show_progress="hidden",
        api_visibility="private",
    )


def _search_tab(answers: Answers) -> None:
    if answers.photos is None:
        gr.HTML("<p>Start with <code>--folder PHOTOS</code> to search a folder of pictures.</p>")
        return
    root = answers.photos.pictures

    def found(*given: Any) -> str:
        return html.found_pictures(answers.search(*given), root)

    with gr.Row():
        with gr.Column(scale=1):
            words = gr.Textbox(label="Words, one text a line", lines=1)
            minus = gr.Textbox(label="Without (words to look away from)", lines=1)
            picture = _picture("And a picture", [])
            weight = gr.Slider(-1, 1, 1, step=0.1, label="Weight of the picture; below 0: less it")
            count = gr.Slider(1, 60, 12, step=1, label="Pictures to show")
        with gr.Column(scale=2):
            shown = gr.HTML()
            _connect(found, [words, picture, weight, minus, count], shown, "")


def _look_tab(answers: Answers, examples: Sequence[str]) -> None:
    def look(path: Any, words: Any) -> list[tuple[Any, str]]:
        return [(overlay(seen), seen.name) for seen in answers.look(path, words)]

    with gr.Row():
        with gr.Column(scale=1):
            picture = _picture("Picture", examples)
            words = gr.Textbox(label="Words", lines=1)
            gr.HTML(
                "<p>Relevance of the words: Grad-CAM (Selvaraju et al. 2017) of the cosine of "
                "picture and words. Attention: the model's own weights, the mean of all heads.</p>"
            )
        with gr.Column(scale=2):
            shown = gr.Gallery(
                label="Brighter: more", columns=2, height=520, format="png", buttons=[]
            )
            _connect(look, [picture, words], shown, [])


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
            shown = gr.HTML()
            _connect(compare, [pictures, captions], shown, "")


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
