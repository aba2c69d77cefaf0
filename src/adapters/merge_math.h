// The arithmetic of merging: one matrix out of one matrix of each adapter, as PEFT 0.21 computes it
// (utils/merge_utils.py): in f32, with sums in the order of the adapters. Pure functions, any
// thread; no more than one adapter's matrix is held at a time.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "adapters/adapter_ref.h"
#include "lorry/tensor.h"

namespace lorry {

// Dense, row-major.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<float> values;
};

// Sets all but the int(density * n) values of largest magnitude to zero; of equal ones the first
// are kept. density >= 1 keeps all.
void keep_largest(std::span<float> values, double density);

// DARE: keeps each value with probability `density`, divided by density so that the expectation
// stays, and sets the others to zero. Which ones follows from (key, index) alone. density >= 1
// keeps all as they are.
void keep_random(std::span<float> values, double density, uint64_t key);

// Number i of the stream that SplitMix64 makes of the seed `key`.
uint64_t splitmix64(uint64_t key, uint64_t i);

// One adapter's share of a merged matrix: weight * matrix, its first element at (row, col).
struct MergeTerm {
  float weight = 1;
  int64_t row = 0, col = 0;
};

// Fills in the matrix of term i; called at least once for each i, with equal results.
using ReadTerm = std::function<void(size_t i, Matrix& matrix)>;

// out = the sum of the terms; where a term has no element it adds nothing.
// Requires: out is f32 [rows, cols], dense and zero, and every term lies within it.
void weighted_sum(std::span<const MergeTerm> terms, const ReadTerm& read, Tensor out);

// TIES: per element the matrices, not weighted, elect a sign (by their sum, or by the number of
// their signs; zero elects plus); out = the sum of the weighted values that have it, divided by
// how many there are. Requires: as weighted_sum.
void elected_mean(std::span<const MergeTerm> terms, const ReadTerm& read,
                  MergeSpec::MajoritySign elected_by, Tensor out);

}  // namespace lorry
