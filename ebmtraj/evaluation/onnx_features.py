"""Features of images by a network that the user points to, such as Inception v3: an ONNX file.

Distances of Inception's features: Heusel et al. 2017. Needs onnxruntime (extra `features`).
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import Array, FloatArray

MOST = 2_000_000_000  # bytes of a file; Inception v3 has 90 million


class FeatureNetwork:
    """A network (N, C, H, W) in [0, 1] -> (N, D) of an ONNX file; `digest` is the file's sha256, 16 characters.

    It is read as one piece, without files beside it. Raises `EbmtrajError` where the file is missing, damaged, or takes or
    gives something else, or onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError:
            raise EbmtrajError("onnxruntime is not installed; run pip install 'ebmtraj[features]'") from None
        if not path.is_file():
            raise EbmtrajError(f"{path} does not exist; give a network of features as an ONNX file")
        if path.stat().st_size > MOST:
            raise EbmtrajError(f"{path} has more than {MOST:,} bytes; give a network of features as an ONNX file")
        content = path.read_bytes()
        self.path, self.digest = path, hashlib.sha256(content).hexdigest()[:16]
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
        wanted = [
            each for each in ("CUDAExecutionProvider", "CPUExecutionProvider") if each in runtime.get_available_providers()
        ]
        try:
            self._session = runtime.InferenceSession(content, options, providers=wanted)
        except Exception as error:  # onnxruntime has a kind for each fault
            raise EbmtrajError(f"{path} can't be read as ONNX: {' '.join(str(error).split())[:200]}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or not outputs or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            raise EbmtrajError(f"{path}: a network of features takes one array (N, C, H, W) of float32")
        self._input, self._output = inputs[0].name, outputs[0].name
        _, *self._shape = (size if isinstance(size, int) else None for size in inputs[0].shape)

    @torch.no_grad()
    def features(self, pixels: Array | Tensor, batch: int = 50) -> FloatArray:
        """Features (N, D) float64 of images (N, C, H, W) in [0, 1], resized and made colour as the network wants them.

        Raises `EbmtrajError` for a number of channels that it does not take, and where it gives no numbers.
        """
        x = torch.as_tensor(pixels).to(torch.float32)
        channels, height, width = (own if own else given for own, given in zip(self._shape, x.shape[1:], strict=True))
        if x.shape[1] not in (1, channels):
            raise EbmtrajError(f"{self.path}: it takes images of {channels} channels, these have {x.shape[1]}")
        found = []
        for part in x.expand(-1, channels, -1, -1).split(batch):
            if part.shape[2:] != (height, width):
                part = F.interpolate(part, (height, width), mode="bilinear", align_corners=False, antialias=True)
            try:
                (given,) = self._session.run([self._output], {self._input: part.contiguous().numpy()})
            except Exception as error:
                raise EbmtrajError(f"{self.path}: it fails: {' '.join(str(error).split())[:200]}") from None
            found.append(np.asarray(given, np.float64).reshape(len(part), -1))
        features = np.concatenate(found)
        if not np.isfinite(features).all():
            raise EbmtrajError(f"{self.path}: its features are not finite")
        return features
