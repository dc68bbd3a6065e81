"""Points that a search loses to the exact optimum of an additive score, which a MILP finds (HiGHS).

python benchmarks/additive_optimum.py [--measured FOLDER] [--lut FOLDER] [--seeds 5]

The space is `ofa_mbv3`; the score is a ridge regression of 400 OFA subnets measured on ImageNet (FOLDER, CSV files
with columns `Sub-network` and `Top-1 Acc (%)`), with a term for the resolution, or made up without FOLDER. Limits
are of MACs, parameters, the size of the file, memory, and a latency: that of OFA's tables of a Samsung Note10
(--lut), at the three resolutions that these know, or a made-up one at all.

The MILP is written apart from the search: one binary variable for each state of each group of layers, one
equation for each choice that two groups share, one row for each limit; it is solved for each resolution.
"""
