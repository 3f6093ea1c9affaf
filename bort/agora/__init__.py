"""Agora (section 5.4): augmentation by tau, distillation, and pruning of hyper-parameters."""
