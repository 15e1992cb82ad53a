"""Models in the style of other projects, shortened: a reading of modules misses their weights."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

WIDTH, HEADS, VOCABULARY = 8, 2, 11
INIT = nn.initializers.lecun_normal()


class EncoderBlock(nn.Module):
    """A block of a vision transformer; with a carry, for `nn.scan`."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(HEADS, deterministic=deterministic)(y, y)
        x = x + nn.Dropout(0.1)(y, deterministic)
        y = nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(y), None


class Vit(nn.Module):
    """A vision transformer whose blocks are scanned and rematerialised."""

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(WIDTH, (2, 2), strides=(2, 2), padding="VALID", name="embedding")(image)
        x = x.reshape(len(x), -1, WIDTH)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        blocks = nn.scan(
            nn.remat(EncoderBlock, static_argnums=(2,)),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=2,
        )
        x, _ = blocks(name="blocks")(x, True)
        return nn.Dense(3, name="head")(nn.LayerNorm()(x).mean(axis=1))


class DecoderBlock(nn.Module):
    """A block of a small language model: projections by `DenseGeneral`, heads by einsum."""

    @nn.compact
    def __call__(self, x):
        y = nn.RMSNorm()(x)
        shape = (HEADS, WIDTH // HEADS)
        q, k, v = (nn.DenseGeneral(shape, use_bias=False, name=name)(y) for name in "qkv")
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        weights = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k), -1e9)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(weights), v)
        x = x + nn.DenseGeneral(WIDTH, axis=(-2, -1), use_bias=False, name="out")(y)
        y = nn.gelu(nn.Dense(4 * WIDTH, use_bias=False)(nn.RMSNorm()(x)))
        return x + nn.Dense(WIDTH, use_bias=False)(y)


class Decoder(nn.Module):
    """A language model of rematerialised blocks, whose head is the table of its tokens."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(VOCABULARY, WIDTH, name="tokens")
        places = nn.Embed(tokens.shape[1], WIDTH, name="places")
        x = table(tokens) + places(jnp.arange(tokens.shape[1]))
        for i in range(2):
            x = nn.remat(DecoderBlock)(name=f"block_{i}")(x)
        return table.attend(nn.RMSNorm()(x))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.narrow(nnx.gelu(self.wide(x)))


class NnxStack(nnx.Module):
    """Blocks of NNX, scanned over and rematerialised."""

    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=2)(nnx.vmap(NnxBlock))(rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        step = nnx.remat(lambda x, block: block(x))
        x = nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        return self.head(x.mean(axis=1))


class Classifier(nn.Module):
    """Tokens read in both directions by recurrent cells."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        both = nn.Bidirectional(nn.RNN(nn.SimpleCell(WIDTH)), nn.RNN(nn.SimpleCell(WIDTH)))
        return nn.Dense(3, name="head")(both(x)[:, -1])


class FusedBlock(nn.Module):
    """Attention of a large language model: its own parameters, multiplied by einsum."""

    @nn.compact
    def __call__(self, x):
        fused = self.param("qkv", INIT, (3, HEADS, WIDTH, WIDTH // HEADS))
        q, k, v = jnp.einsum("btd,chdk->cbthk", x, fused)
        weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        heads = jnp.einsum("bhts,bshk->bthk", weights, v)
        out = self.param("out", INIT, (HEADS, WIDTH // HEADS, WIDTH))
        x = x + jnp.einsum("bthk,hkd->btd", heads, out)
        gate, up = jnp.einsum("btd,cdf->cbtf", x, self.param("gated", INIT, (2, WIDTH, 16)))
        return x + (nn.silu(gate) * up) @ self.param("down", INIT, (16, WIDTH))


class Experts(nn.Module):
    """A mixture of experts, each token to one of them, by a ragged product."""

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(4, use_bias=False, name="router")(x)
        chosen = jnp.argmax(logits, axis=-1)
        order = jnp.argsort(chosen)
        sizes = jnp.bincount(chosen, length=4)
        y = jax.lax.ragged_dot(x[order], self.param("wide", INIT, (4, WIDTH, 16)), sizes)
        y = jax.lax.ragged_dot(nn.relu(y), self.param("narrow", INIT, (4, 16, WIDTH)), sizes)
        probability = jnp.max(jax.nn.softmax(logits), axis=-1)
        x = x + y[jnp.argsort(order)] * probability[:, None]
        return nn.Dense(3, name="head")(x)
