"""From a checkpoint to a bundle: ONNX, engines, proof that they agree with the network."""
