// The update rules: what is left of a slot's mass when w is written to it, alpha(w, gamma), and the slopes of alpha.
//
// Twin of ramnet_np/core/retention.py. A rule is a struct of this namespace under its public name; a kernel is compiled
// for one of them, UPDATE. retention.py reads the names here, so a rule that is missing here is refused on the host.
// A condition is put so that NaN, which fulfils none, is computed with and stays NaN.
#pragma once
#include "runtime/common.cuh"

#ifndef UPDATE
#error "UPDATE must be defined as the name of an update rule"
#endif

DEVICE float log1p_(float x) { return log1pf(x); }
DEVICE double log1p_(double x) { return log1p(x); }
DEVICE float reciprocal(float x) {  // to about the last digit
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE double reciprocal(double x) { return 1 / x; }

template <class Acc> struct Slopes {
    Acc w, gamma;  // d alpha / dw, d alpha / dgamma
};

namespace rules {

template <class Acc> struct pdma {
    // (1 - w)^gamma: a power through the logarithm, which keeps the digits of a small w
    DEVICE static Acc alpha(Acc w, Acc gamma) {
        if (gamma == 1) return 1 - w;
        return w >= 1 ? Acc(gamma == 0) : exp_(gamma * log1p_(-w));
    }
    // Those of (e + (1 - e)(1 - w))^gamma, e = proxy_eps. 1 - w is at least ``smallest`` for every w < 1, so the floor
    // acts at w = 1 alone, where the true slope may be infinite.
    DEVICE static Slopes<Acc> slopes(Acc w, Acc gamma, Acc, Acc proxy_eps) {
        constexpr Acc smallest = sizeof(Acc) == 4 ? 0x1p-24 : 0x1p-53;
        const Acc lost = (1 - proxy_eps) * w, most = 1 - smallest, log_kept = log1p_(-(lost > most ? most : lost));
        const Acc kept = exp_(gamma * log_kept), base = 1 - lost;
        return {-gamma * (1 - proxy_eps) * kept * reciprocal(max_(base, smallest)),
                (base <= 0 ? Acc(gamma == 0) : kept) * log_kept};
    }
};

template <class Acc> struct gsu {
    // (1 - w) / ((1 - w) + e^gamma w), both parts times e^-max(gamma, 0) so that nothing overflows
    DEVICE static Acc alpha(Acc w, Acc gamma) {
        const Acc kept = kept_part(w, gamma), total = kept + lost_part(w, gamma);
        return total == 0 ? Acc(w == 0) : kept / total;
    }
    DEVICE static Slopes<Acc> slopes(Acc w, Acc gamma, Acc alpha, Acc) {
        Acc total = kept_part(w, gamma) + lost_part(w, gamma);
        if (total == 0) total = 1;  // both parts underflow only for |gamma| far beyond use
        constexpr Acc steepest = sizeof(Acc) == 4 ? 0x1p105 : 0x1p972;  // leaves room for the adjoint, as in the core
        const Acc ratio = exp_(-(gamma < 0 ? -gamma : gamma)) / total;
        return {-ratio / max_(total, ratio / steepest), -alpha * (1 - alpha)};
    }
    DEVICE static Acc kept_part(Acc w, Acc gamma) { return (1 - w) * exp_(gamma < 0 ? Acc(0) : -gamma); }
    DEVICE static Acc lost_part(Acc w, Acc gamma) { return w * exp_(gamma > 0 ? Acc(0) : gamma); }
};

}  // namespace rules

template <class Acc> using Retention = rules::UPDATE<Acc>;
