// prediction.cuh: the network's output as noise and picture. `predict`: 0 noise, 1 image, 2 velocity.
#pragma once
#include <stdint.h>

struct Prediction { float noise, image; };

// With s, q the signal and noise rates: noisy = s image + q noise, velocity = s noise - q image.
static __device__ __forceinline__ Prediction split_prediction(uint32_t predict, float p, float noisy, float signal, float noise_rate) {
  if (predict == 0) return {p, (noisy - noise_rate * p) / signal};
  if (predict == 1) return {(noisy - signal * p) / noise_rate, p};
  return {noise_rate * noisy + signal * p, signal * noisy - noise_rate * p};
}
