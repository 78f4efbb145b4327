// One access in reverse time: what a write or a read does to q = <d, s> and dz of its slot, and what its gradients need of
// them. mass_backward.cu derives these steps and says who takes them when.
#pragma once
#include "memory/mass.cuh"
#include "memory/retention.cuh"

// What an access does to q and dz of its slot, in reverse time:
//
//     q = b if <d, before> is known (a heavy write), else q + b
//     pull = p - g q,   dz = alpha (dz - pull)
//
// A read is such an update with alpha = 1 and g = 0.
struct alignas(4 * sizeof(Acc)) AdjointUpdate {
    Acc alpha, b, g, p;  // alpha with its sign bit set, also where it is 0: <d, before> is known

    DEVICE static AdjointUpdate of_read(const MassAdjoint& gain) { return {1, gain.q, 0, -gain.dz}; }
    DEVICE Acc pull(Acc q) const { return p - g * q; }
    // Returns q after the update and dz before it, both of which dw needs.
    DEVICE MassAdjoint apply(MassAdjoint& a) const {
        a.q = sign_bit(alpha) ? b : a.q + b;
        const MassAdjoint seen = a;
        a.dz = absolute(alpha) * (a.dz - pull(a.q));
        return seen;
    }
};

// What is left, at an access, of q and dz at the segment's end: AdjointMap without what zeros become.
struct alignas(2 * sizeof(Acc)) ShareOfEnd {
    Acc a, c;

    DEVICE void pass(const AdjointUpdate& update) {
        const bool q_is_known = sign_bit(a) || sign_bit(update.alpha);
        const Acc alpha = absolute(update.alpha), scale = alpha * absolute(a);
        c = alpha * (q_is_known ? c : c + update.g), a = q_is_known ? -scale : scale;
    }
};

// dw = u - h q + dz' + slope (dz' - pull), dz' the adjoint before the update; slopes times the mass before.
struct WeightGradTerms {
    Acc u, h, slope, slope_gamma;
};

// The update by a live write, and the terms of its dw. ``dot``: <d, v>; ``dot_before``: <d, before>, known where ``first``.
DEVICE void prepare_write(
    const MemoryParams& memory, const MassAccess& write, Acc gamma, Acc mass_before, bool first, Acc dot, Acc dot_before,
    AdjointUpdate& update, WeightGradTerms& terms
) {
    const Acc alpha = write.change.a, w = write.change.b;
    const Slopes<Acc> slope = Retention<Acc>::slopes(w, gamma, alpha, memory.proxy_eps);
    const Acc kept_mass = alpha * mass_before + memory.eps, per_mass = reciprocal(kept_mass + w);
    const Acc eta = w * per_mass, kappa = kept_mass * per_mass;
    if (first) {
        const Acc deta = (dot - dot_before) * per_mass, pull = eta * deta;
        update = {-alpha, kappa * dot_before, 0, pull};
        terms = {deta - pull, 0, mass_before * slope.w, mass_before * slope.gamma};
    } else {
        const Acc g = kept_mass > 0 ? eta * reciprocal(kept_mass) : Acc(0);
        update = {alpha, -eta * dot, g, g * (kappa * dot)};
        terms = {kappa * dot * per_mass, per_mass, mass_before * slope.w, mass_before * slope.gamma};
    }
}
