"""DynaBERT (Hou et al., arXiv 2004.04037): one network of many widths and depths.

    importance.py   which heads and intermediate neurons matter, from gradients on data
    rewiring.py     the important ones first; the network's function does not change
    adaptive.py     from a teacher to a rewired network; opening and extracting finished ones
    grid.py         which heads, neurons and layers each width and depth keeps
    sampling.py     which sub-networks a step trains, and what they have computed
    subnetworks.py  a sub-network that shares the full network's parameters, sliced in its graph
    options.py      the options of run_finetune.py --algorithm dynabert
    losses.py       what a sub-network learns from its teacher: logits and hidden states
    augmentation.py more examples by the tau-functions
    training.py     the three stages: width, depth, fine-tuning on labels
    extraction.py   a sub-network as a model folder of its own
    report.py       score, parameters, FLOPs and latency of every sub-network
    supernet.py     the FPTAS's W over the sub-networks, with their real errors

``run_finetune.py --algorithm dynabert`` trains, ``python -m bort.dynabert extract|table`` uses the result,
``run_search.py --supernet RUN`` searches over it.
"""
