"""Forward passes without gradients: one door, :func:`bort.engines.engine.open_engine`, and what is behind it.

| module | what |
|---|---|
| ``engine`` | chooses, checks and opens an engine |
| ``base`` | what an engine is, what users choose |
| ``openvino``, ``openvino_model``, ``openvino_int8`` | OpenVINO, and its 8-bit form by NNCF |
| ``onnxruntime``, ``onnx_quantize`` | ONNX Runtime, exported files, and their 8-bit forms |
| ``mxnet``, ``mxnet_compiled``, ``mxnet_graph``, ``mxnet_int8`` | MXNet's compiled graphs and its own int8 |
| ``onnx_graph`` | the network as the ONNX graph that OpenVINO and ONNX Runtime read |
| ``calibration`` | inputs on which 8-bit forms learn their ranges |

How to add an engine:

1. Write a module with a subclass of ``base.Engine`` whose call takes numpy arrays and returns one, and which
   refuses bad input by ``base.check_batch``; override ``map`` where several batches are faster together.
2. Give it ``make(facts, arrays, part, precision, calibration)`` (the network's facts and its parameters by
   name), which raises ``base.Unavailable``, with the reason and the remedy, where the library or the
   instructions are missing, and ``import_NAME()``, which imports the library or raises the same.
3. Name it in ``base.KINDS``; say in ``engine.FASTEST`` for which precisions it serves and what is faster, and
   in ``engine.COSTS`` what it costs to open.
4. Add its name to ``KINDS`` in ``tests/engines/test_engine.py``: padded batches, all parts, order, errors and
   the fall-back are tested for each.

``open_engine`` then holds it against the plain network at every opening.
"""
