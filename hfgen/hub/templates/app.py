"""A page that draws images from a pipeline: sliders for whatever its call accepts.

Needs diffusers and gradio alone; the pipeline lies beside this file in `model/`.
"""

import inspect
from pathlib import Path

import gradio as gr
import torch
from PIL import Image

SIDE = 96  # pixels that a small image is at least shown with
COLUMNS = 4


def controls(pipeline):
    """Argument of the pipeline's call -> its slider, for those arguments that it has."""
    accepted = inspect.signature(pipeline.__call__).parameters
    scheduler = getattr(pipeline, "scheduler", None)
    most = min(getattr(scheduler, "config", {}).get("num_train_timesteps", 1000), 250)
    classes = getattr(pipeline, "num_classes", None)
    guided = takes_text(pipeline) or (classes and scheduler is not None)
    usual = getattr(accepted.get("guidance_scale"), "default", 1.0)
    known = {
        "truncation_psi": lambda: gr.Slider(0.05, 1.0, 1.0, step=0.05, label="Truncation"),
        "temperature": lambda: gr.Slider(0.0, 1.5, 1.0, step=0.05, label="Temperature"),
        "num_inference_steps": lambda: gr.Slider(1, most, min(25, most), step=1, label="Steps"),
        "guidance_scale": lambda: gr.Slider(1.0, 12.0, usual, step=0.5, label="Guidance"),
        "prompt": lambda: gr.Textbox("a picture", label="Prompt"),
    }
    wanted = {"guidance_scale": guided, "prompt": takes_text(pipeline)}
    made: dict = {
        name: make() for name, make in known.items() if name in accepted and wanted.get(name, True)
    }
    if classes and "class_labels" in accepted:
        choices = [("one after the other", -1), *((str(i), i) for i in range(classes))]
        made["class_labels"] = gr.Dropdown(choices, value=-1, label="Class")
    return made


def takes_text(pipeline):
    """Whether images are drawn from texts."""
    return pipeline.components.get("tokenizer") is not None


def call(pipeline, names, values, count, generators=None, **given):
    """`count` images; `values` are those of the controls called `names`."""
    options = dict(zip(names, values, strict=True))
    if "class_labels" in options:
        label = options["class_labels"]
        one_each = [number % pipeline.num_classes for number in range(count)]
        options["class_labels"] = one_each if label == -1 else [label] * count
    if "prompt" in options:
        options["prompt"] = [options["prompt"]] * count
    elif "latents" not in given:
        options["batch_size"] = count
    if "num_inference_steps" in options:
        options["num_inference_steps"] = int(options["num_inference_steps"])
    if generators:
        options["generator"] = generators
    return pipeline(**options, **given).images


def draw(pipeline, names, seed, count, *values):
    """A sheet of images; each has its own seed, so their number changes none of them."""
    generators = [torch.Generator().manual_seed(int(seed) + i) for i in range(int(count))]
    return sheet(call(pipeline, names, values, int(count), generators))


def latent(pipeline, seed):
    """The standard normal latent of a seed."""
    generator = torch.Generator().manual_seed(int(seed))
    return torch.randn(pipeline.latent_shape, generator=generator)


def walk(pipeline, names, first, last, share, *values):
    """The image at `share` of the way from one latent to another, and eight on the way."""
    a, b = latent(pipeline, first), latent(pipeline, last)
    if "truncation_psi" in names:  # given latents cannot be truncated
        values = [1.0 if n == "truncation_psi" else v for n, v in zip(names, values, strict=True)]
    if "class_labels" in names:  # one class on the whole way
        values = [
            max(v, 0) if n == "class_labels" else v for n, v in zip(names, values, strict=True)
        ]
    shares = [share, *(i / 7 for i in range(8))]
    latents = torch.stack([between(a, b, t) for t in shares])
    images = call(pipeline, names, values, len(shares), latents=latents)
    return sheet(images[:1], 1), sheet(images[1:], 8)


def between(a, b, share):
    """A point between standard normal latents, with their variance."""
    return ((1 - share) * a + share * b) / ((1 - share) ** 2 + share**2) ** 0.5


def sheet(images, columns=COLUMNS):
    """One picture of all images, enlarged without blurring."""
    scale = max(1, -(-SIDE // images[0].width))
    width, height = images[0].width * scale, images[0].height * scale
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (min(columns, len(images)) * width, rows * height), "white")
    for i, image in enumerate(images):
        large = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        picture.paste(large, (i % columns * width, i // columns * height))
    return picture


def image_box(label, name):
    """A place for a picture; its label is for screen readers."""
    return gr.Image(label=label, show_label=False, buttons=["download"], format="png", elem_id=name)


def build(pipeline, title):
    """The page, as `gradio.Blocks`."""
    pipeline.set_progress_bar_config(disable=True)
    accepted = inspect.signature(pipeline.__call__).parameters
    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(scale=1):
                seed = gr.Slider(0, 1000, 0, step=1, label="Seed", elem_id="seed")
                count = gr.Slider(1, 16, 8, step=1, label="Images", elem_id="count")
                more = controls(pipeline)
            with gr.Column(scale=2):
                picture = image_box("Images", "picture")
        names = list(more)

        def redraw(*values):
            return draw(pipeline, names, *values)

        inputs = [seed, count, *more.values()]
        page.load(redraw, inputs, picture)
        for control in inputs:
            control.change(redraw, inputs, picture, show_progress="hidden")
        if "latents" in accepted and hasattr(type(pipeline), "latent_shape"):
            interpolation(page, pipeline, more)
    return page


def interpolation(page, pipeline, more):
    """The part of the page that walks between two latents."""
    gr.Markdown("## Between two latents")
    with gr.Row():
        with gr.Column(scale=1):
            first = gr.Slider(0, 1000, 0, step=1, label="From seed", elem_id="first")
            last = gr.Slider(0, 1000, 1, step=1, label="To seed", elem_id="last")
            share = gr.Slider(0.0, 1.0, 0.5, step=0.01, label="Position", elem_id="share")
        with gr.Column(scale=2):
            at = image_box("Here", "here")
            way = image_box("On the way", "way")
    names = list(more)

    def rewalk(*values):
        return walk(pipeline, names, *values)

    inputs = [first, last, share, *more.values()]
    page.load(rewalk, inputs, [at, way])
    for control in inputs:
        control.change(rewalk, inputs, [at, way], show_progress="hidden")


def main():
    """Serve the pipeline that lies beside this file."""
    from diffusers import DiffusionPipeline

    folder = Path(__file__).resolve().parent / "model"
    own_code = any(folder.rglob("*.py"))  # uploaded here together with this file
    pipeline = DiffusionPipeline.from_pretrained(
        str(folder), trust_remote_code=own_code, use_safetensors=True
    )
    readme = (folder.parent / "README.md").read_text(encoding="utf-8")
    title = next((line[2:] for line in readme.splitlines() if line.startswith("# ")), "hfgen")
    build(pipeline, title).launch()


if __name__ == "__main__":
    main()
