"""A static page that explains in the browser: `onnxcam web`."""
