// Precompiled for every file outside kernels/: the slow headers of torch, nothing of ours.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/generated/Functions.h>
