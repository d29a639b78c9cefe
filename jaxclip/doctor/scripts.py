"""Scripts of about ten lines that run a probe through another program and write theirs.npz."""

TORCH = """\
# Yours in place of clip.load, clip.tokenize and preprocess, where your code has its own.
import clip, numpy as np, torch
from PIL import Image

probe = np.load("probe.npz")
model, preprocess = clip.load("CHECKPOINT", device="cpu")
pictures = [Image.fromarray(probe[f"picture_{i}"]) for i in range(len(probe["pixels"]))]
theirs = {"pixels": torch.stack([preprocess(picture) for picture in pictures])}
theirs["tokens"] = clip.tokenize([str(text) for text in probe["texts"]], truncate=True)
pixels, tokens = torch.tensor(probe["pixels"]), torch.tensor(probe["tokens"]).long()
with torch.no_grad():
    theirs["image_features"] = model.encode_image(pixels)
    theirs["text_features"] = model.encode_text(tokens)
    theirs["logits_per_image"] = model(pixels, tokens)[0]
np.savez("theirs.npz", **{key: value.float().numpy() for key, value in theirs.items()})
"""

JAX = """\
# Yours in place of jaxclip.load and jaxclip.tokenize: any code that takes pixels [n, h, w, 3].
import jaxclip, numpy as np
from PIL import Image

probe = np.load("probe.npz")
model, preprocess = jaxclip.load("CHECKPOINT")
pictures = [Image.fromarray(probe[f"picture_{i}"]) for i in range(len(probe["pixels"]))]
theirs = {"pixels": np.stack([preprocess(picture) for picture in pictures])}
if any(probe["texts"]):
    texts, length = [str(text) for text in probe["texts"]], probe["tokens"].shape[1]
    theirs["tokens"] = jaxclip.tokenize(texts, length, truncate=True)
pixels, tokens = probe["pixels"].transpose(0, 2, 3, 1), probe["tokens"]
theirs["image_features"] = model.encode_image(pixels)
theirs["text_features"] = model.encode_text(tokens)
theirs["logits_per_image"] = model(pixels, tokens)[0]
np.savez("theirs.npz", **{key: np.asarray(value, np.float32) for key, value in theirs.items()})
"""

KERAS = """\
# Yours in place of the preset; KerasHub takes pixels [n, h, w, 3] and compares all with all.
import keras_hub, numpy as np

probe = np.load("probe.npz")
backbone = keras_hub.models.CLIPBackbone.from_preset("clip_vit_base_patch32")
pixels, tokens = probe["pixels"].transpose(0, 2, 3, 1), probe["tokens"]
theirs = {"image_features": backbone.get_vision_embeddings(pixels)}
theirs["text_features"] = backbone.get_text_embeddings(tokens)
theirs["logits_per_image"] = backbone({"images": pixels, "token_ids": tokens})["vision_logits"]
np.savez("theirs.npz", **{key: np.asarray(value, np.float32) for key, value in theirs.items()})
"""

ONNX = """\
# Names of inputs and outputs are those of a Hugging Face export; yours: session.get_inputs().
# Its image_embeds have length one, so that the answer is features-normalised: no fault here.
import numpy as np, onnxruntime

probe = np.load("probe.npz")
session = onnxruntime.InferenceSession("model.onnx")
tokens = probe["tokens"].astype(np.int64)
seen = (np.arange(tokens.shape[1]) <= tokens.argmax(axis=1)[:, None]).astype(np.int64)
inputs = {"pixel_values": probe["pixels"], "input_ids": tokens, "attention_mask": seen}
image, text, logits = session.run(["image_embeds", "text_embeds", "logits_per_image"], inputs)
np.savez("theirs.npz", image_features=image, text_features=text, logits_per_image=logits)
"""

SCRIPTS = {"torch": TORCH, "jax": JAX, "keras": KERAS, "onnx": ONNX}
