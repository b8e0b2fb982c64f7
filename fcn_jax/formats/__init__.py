"""Networks written for other programs, from the operations of `models/tape.py`.

onnx_file.py      one ONNX file, from RGB bytes to classes
stablehlo.py      a program of JAX for CPU, CUDA and TPU
torch_names.py    weights under the names of another project's PyTorch network
torch_folder.py   weights and operations for `fcn_torch.py`
fcn_torch.py      a PyTorch module that needs nothing of fcn_jax; copied into such a folder
"""
