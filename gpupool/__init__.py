"""gpupool: every GPU of a machine as replicas of one LLM behind one port."""

__version__ = "0.1.0"
