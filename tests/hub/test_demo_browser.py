"""The demo page in a real browser: an image appears, and a slider changes it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hub_client import client_environment
from webdriver import ARROW_RIGHT, Browser

SERVE = """
import sys, torch
from hfgen.hub.space import demo
from hfgen.models.gan_dcgan import DCGANGenerator
from hfgen.pipelines.gan_pipeline import GANPipeline
torch.manual_seed(0)
generator = DCGANGenerator(sample_size=8, out_channels=1, channels=4, latent_dim=4)
for weight in generator.parameters():
    torch.nn.init.normal_(weight)  # or an untrained one is nearly all grey
GANPipeline(generator).save_pretrained(sys.argv[1])
demo(sys.argv[1])
"""
PIXELS = """
const image = document.querySelector('#picture img');
if (!image || !image.complete || !image.naturalWidth) return null;
const canvas = document.createElement('canvas');
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
const context = canvas.getContext('2d');
context.drawImage(image, 0, 0);
const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
return [canvas.width, canvas.height, ...data.filter((_, i) => i % 396 == 0)].join();
"""


@pytest.fixture
def address(tmp_path):
    environment = client_environment("http://127.0.0.1:9", tmp_path)
    command = [sys.executable, "-u", "-c", SERVE, str(tmp_path / "tiny-gan")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        assert "demo of" in line
        yield line.split(": ")[1].split()[0]
        server.terminate()


@pytest.mark.slow
def test_an_image_appears_and_the_slider_changes_it(address):
    with Browser() as browser:
        browser.open(address)
        first = browser.wait(PIXELS)
        assert first.startswith("384,192,")  # 8 images in 2 rows of 4, each 96 pixels wide
        assert len(set(first.split(",")[2:])) > 10
        browser.type("#seed input[type=range]", ARROW_RIGHT)
        changed = "const now = (() => {" + PIXELS + "})(); return now != null && now != '" + first
        assert browser.wait(changed + "' && now")
