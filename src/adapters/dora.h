// The norms that DoRA divides by, computed when an adapter is loaded. Pure function, any thread.
#pragma once
#include <functional>
#include <vector>

#include "lorry/tensor.h"

namespace lorry {

// W + scale * left * right, in what the backend multiplies by: all of it rounded to act.
struct DoraMatrix {
  int64_t rows = 0, cols = 0;  // of W: a linear [out, in], the embedding [V, D]
  // y [n, cols] f32 <- rows [first, first + n) of W.
  std::function<void(int64_t first, Tensor y)> base;
  Tensor left;   // f32 [rows, rank]: B of a linear, A transposed of the embedding
  Tensor right;  // f32 [rank, cols]: A of a linear, B transposed of the embedding
  float scale = 0;
};

// The Euclidean norm of each row, or of each column, in double.
std::vector<double> row_norms(const DoraMatrix& m);
std::vector<double> column_norms(const DoraMatrix& m);

}  // namespace lorry
