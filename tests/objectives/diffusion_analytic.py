"""Networks whose output is known in closed form."""

from types import SimpleNamespace

import torch
from torch import nn

from hfgen.denoising import parameterisation


class Config(dict):
    """A network's config: keys are attributes too."""

    __getattr__ = dict.__getitem__


class Analytic(nn.Module):
    """Puts out, in any scheduler's parameterisation, what ``posterior_mean`` means."""

    config = Config(sample_size=8, in_channels=1)
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, scheduler):
        super().__init__()
        self.param = parameterisation(scheduler)

    def posterior_mean(self, x_t, alpha, sigma):
        """E[x | x_t]."""
        raise NotImplementedError

    def forward(self, sample, time):
        """The output for the inputs of ``path.model_input``; both are undone first."""
        path = self.param.path
        t = time if path.model_input(time[:1], time)[1] is time else path.from_model_time(time)
        unit, _ = path.model_input(torch.ones_like(sample), t)
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in path.alpha_sigma(t))
        x_t = sample / unit
        image = self.posterior_mean(x_t, alpha, sigma)
        noise = (x_t - alpha * image) / sigma
        return SimpleNamespace(sample=self.param.prediction.target(image, noise, alpha, sigma))


class Optimal(Analytic):
    """Data N(mean, std^2 I): E[x | x_t] = mean + alpha std^2 (x_t - alpha mean) / variance(x_t)."""

    def __init__(self, scheduler, std: float, mean: float = 0.0):
        super().__init__(scheduler)
        self.std, self.mean = std, mean

    def posterior_mean(self, x_t, alpha, sigma):
        variance = (alpha * self.std) ** 2 + sigma**2
        return self.mean + alpha * self.std**2 / variance * (x_t - alpha * self.mean)


class Mixture(Analytic):
    """Data in equal parts N(-1, std^2 I) and N(1, std^2 I), pixel by pixel."""

    def __init__(self, scheduler, std: float):
        super().__init__(scheduler)
        self.std = std

    def posterior_mean(self, x_t, alpha, sigma):
        variance = (alpha * self.std) ** 2 + sigma**2
        weight = torch.tanh(alpha * x_t / variance)  # P(+1) - P(-1)
        gain = alpha * self.std**2 / variance
        return weight + gain * (x_t - alpha * weight)
