"""Computes the ten methods once more: PyTorch, float64, the papers' formulas.

    ENV/bin/python benchmarks/peers/independent.py IN.npz OUT.npz

`benchmarks/independent.py` writes IN and reads OUT. ENV has torch and qpth.
This program shares nothing with the package but the layout of the arrays:
images [B, h, w, c], kernels [3, 3, c, d], features in the order h, w, c.

A method is a pair of functions (step, predict) of (weights, task, options):

  step -> (loss [], name -> gradient), the gradient of the outer problem.
  predict -> logits of the query [N Q, N], after adaptation to the support.

`weights` is a flat dictionary, name -> tensor. `task` has the images and labels
of an episode, the running statistics, and the draws that both sides share.
"""

import json
import sys

import numpy as np
import torch
from qpth.qp import QPFunction
from torch.func import grad, grad_and_value, hessian, jvp
from torch.nn import functional as F

BLOCKS = 4


# --- The network and its BatchNorm statistics. ---


def network(weights, images, statistics=None):
  """Runs CNN-4 (Vinyals et al., 2016): returns (features [B, D], statistics).

  Args:
    weights: flat dictionary.
    images: [B, h, w, c].
    statistics: (mean [c], variance [c]) of each block; None takes those of
      the batch itself.
  """
  x, used = images.permute(0, 3, 1, 2), []
  along = lambda v: v[None, :, None, None]
  for i in range(BLOCKS):
    kernel = weights[f'backbone/conv_{i}/kernel'].permute(3, 2, 0, 1)
    x = F.conv2d(x, kernel, padding=1)
    mean, variance = statistics[i] if statistics else (
      x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    used.append((mean, variance))
    x = (x - along(mean)) / torch.sqrt(along(variance) + 1e-5)
    x = (x * along(weights[f'backbone/norm_{i}/scale'])
         + along(weights[f'backbone/norm_{i}/bias']))
    x = F.max_pool2d(F.relu(x), 2)
  return x.permute(0, 2, 3, 1).flatten(1), used


def query_features(weights, task, how, train):
  """Returns the query's features under `how`, a value of batch_norm."""
  support, query = task['support_x'], task['query_x']
  if how == 'transductive' or (how == 'running' and train):
    return network(weights, query)[0]
  if how == 'episode':
    return network(weights, torch.cat([support, query]))[0][len(support):]
  if how == 'each_query':
    beside = lambda image: torch.cat([support, image[None]])
    return torch.cat([network(weights, beside(image))[0][-1:]
                      for image in query])
  of = task['running'] if how == 'running' else network(weights, support)[1]
  return network(weights, query, of)[0]


def both_features(weights, task, how, train):
  """Returns the features of support and query where no layer adapts."""
  count = len(task['support_x'])
  if how == 'episode' or (how == 'running' and train):
    features = joint_features(weights, task)
    return features[:count], features[count:]
  of = task['running'] if how == 'running' else None
  return (network(weights, task['support_x'], of)[0],
          query_features(weights, task, how, train))


def joint_features(weights, task):
  """Returns the features of support and query as one batch."""
  return network(weights, torch.cat([task['support_x'], task['query_x']]))[0]


def joint_labels(task):
  """Returns the labels of support and query."""
  return torch.cat([task['support_y'], task['query_y']])


def linear(weights, features):
  """Returns the logits of the linear head."""
  return features @ weights['head/weights'] + weights['head/bias']


def unit(x):
  """Returns x / |x| of each row."""
  return x / x.norm(dim=-1, keepdim=True)


# --- Heads. ---


def one_hot(labels, ways):
  """Returns labels one-hot, [S, N]."""
  return F.one_hot(labels, ways).double()


def logistic(x, y, ways, C):
  """Returns (W, b) of min 1/2 |W|^2 + C sum_i CE_i, by Newton's method.

  Intercepts sum to zero. One more step with the gradient's dependence on the
  features gives the derivative of the implicit function theorem.
  """
  size = x.shape[1] * ways
  parts = lambda flat: (flat[:size].reshape(-1, ways), flat[size:])

  def objective(flat, x):
    W, b = parts(flat)
    # The last term picks one of the equivalent intercepts.
    return (0.5 * (W ** 2).sum() + 0.5 * b.sum() ** 2
            + C * F.cross_entropy(x @ W + b, y, reduction='sum'))

  flat, fixed = torch.zeros(size + ways), x.detach()
  for _ in range(100):
    slope = grad(objective)(flat, fixed)
    step = torch.linalg.solve(hessian(objective)(flat, fixed), slope)
    rate = 1.
    while rate > 1e-6 and (objective(flat - rate * step, fixed)
                           > objective(flat, fixed) + 1e-12):
      rate /= 2
    flat = flat - rate * step
    if step.abs().max() < 1e-13 * flat.abs().max():
      break
  curvature = hessian(objective)(flat, fixed)
  return parts(flat - torch.linalg.solve(curvature, grad(objective)(flat, x)))


RESIDUALS = []  # of the conditions of optimality of all support vector machines


def svm_dual(x, y, ways, C, ridge):
  """Returns Crammer and Singer's dual [S, N] as MetaOptNet states it.

  qpth finds which bounds hold with equality. The linear system of these
  equalities then gives the solution to rounding, and autograd its derivative,
  which is that of the KKT conditions.
  """
  n, Y = len(y), one_hot(y, ways)
  Q = torch.kron(x @ x.T, torch.eye(ways)) + ridge * torch.eye(n * ways)
  p, h = -Y.flatten(), C * Y.flatten()
  A = torch.kron(torch.eye(n), torch.ones(1, ways))
  with torch.no_grad():
    a = QPFunction(verbose=0, eps=1e-14, maxIter=100, notImprovedLim=10)(
      Q, p, torch.eye(n * ways), h, A, torch.zeros(n))[0]
    slack, multiplier = h - a, -multipliers(Q @ a + p, h - a, n)
    free = slack > multiplier
  for _ in range(20):
    a, nu = on_face(Q, p, h, A, free)
    with torch.no_grad():
      multiplier = -(Q @ a + p + A.T @ nu)
      wrong = torch.where(free, a - h, -multiplier) > 1e-13
    if not wrong.any():
      break
    free = free ^ wrong
  with torch.no_grad():
    RESIDUALS.append(float(max(
      torch.where(free, multiplier, 0.).abs().max(), (A @ a).abs().max(),
      torch.where(free, a - h, -multiplier).max().clamp(min=0))))
  return a.reshape(n, ways)


def multipliers(slope, slack, n):
  """Estimates slope + nu of each entry, nu where the slack is largest."""
  slope, slack = slope.reshape(n, -1), slack.reshape(n, -1)
  loosest = slack.argmax(1, keepdim=True)
  return (slope - slope.gather(1, loosest)).flatten()


def on_face(Q, p, h, A, free):
  """Solves the program with the other entries at h: returns (a, nu)."""
  inside = free.nonzero()[:, 0]
  at = torch.where(free, 0., h)
  m, n = len(inside), len(A)
  matrix = torch.cat([
    torch.cat([Q[inside][:, inside], A[:, inside].T], 1),
    torch.cat([A[:, inside], torch.zeros(n, n)], 1)])
  right = torch.cat([-(Q @ at + p)[inside], -A @ at])
  solution = torch.linalg.solve(matrix, right)
  return at.index_put((inside,), solution[:m]), solution[m:]


def ridge_weights(x, y, ways, penalty, height):
  """Returns W of min |X W - height Y|^2 + penalty |W|^2, normal equations."""
  return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]),
                            x.T @ (height * one_hot(y, ways)))


# --- Methods in which one network serves all tasks. ---


def through(loss):
  """Returns the step of a loss that is differentiated as it stands."""
  def step(weights, task, o):
    given = {k: v.clone().requires_grad_() for k, v in weights.items()}
    value = loss(given, task, o)
    gradient = torch.autograd.grad(value, list(given.values()))
    return value.detach(), dict(zip(given, gradient, strict=True))
  return step


def mtl_loss(weights, task, o):
  """Wang et al. (2021), the joint objective: rows of the task's classes."""
  features = joint_features(weights, task)
  if o['normalise_train_features']:
    features = unit(features)
  rows = weights['rows'][task['class_ids']]
  return F.cross_entropy(features @ rows.T, joint_labels(task))


def whole_class_loss(weights, task, o):
  """Tian et al. (2020): one classifier of all classes."""
  logits = linear(weights, joint_features(weights, task))
  return F.cross_entropy(logits, task['class_ids'][joint_labels(task)])


def new_head(weights, task, o):
  """Predicts by logistic regression on frozen unit-length features."""
  support, query = (unit(x) for x in both_features(
    weights, task, 'running', train=False))
  W, b = logistic(support, task['support_y'], task['ways'], o['test_C'])
  return query @ W + b


def last_layer(logits, smoothing=lambda o: 0.):
  """Returns the method of a head: (weights, s, q, task, o) -> logits of q."""
  def loss(weights, task, o):
    support, query = both_features(weights, task, o['batch_norm'], train=True)
    out, e = logits(weights, support, query, task, o), smoothing(o)
    wanted = one_hot(task['query_y'], task['ways'])
    wanted = wanted * (1 - e) + (1 - wanted) * e / (task['ways'] - 1)
    return F.cross_entropy(out, wanted)

  def predict(weights, task, o):
    support, query = both_features(weights, task, o['batch_norm'], train=False)
    return logits(weights, support, query, task, o)
  return through(loss), predict


def protonet(weights, support, query, task, o):
  """Snell et al. (2017): minus the squared distance to class means."""
  means = torch.stack([support[task['support_y'] == c].mean(0)
                       for c in range(task['ways'])])
  if o['distance'] == 'cosine':
    return o['scale'] * unit(query) @ unit(means).T
  return -o['scale'] * ((query[:, None] - means[None]) ** 2).sum(-1)


def with_one(x):
  """Appends the constant feature 1."""
  return torch.cat([x, torch.ones(len(x), 1)], 1)


def r2d2(weights, support, query, task, o):
  """Bertinetto et al. (2019): ridge regression on averaged squares."""
  W = ridge_weights(with_one(support), task['support_y'], task['ways'],
                    o['regulariser'] * len(support), 1.)
  return (weights['adjust/scale'] * with_one(query) @ W
          + weights['adjust/shift'])


def r2d2_drawn_loss(weights, task, o):
  """Splits all images of the task anew: `drawn` of each class are support."""
  features, labels, ways = (joint_features(weights, task), joint_labels(task),
                            task['ways'])
  support = torch.cat([(labels == c).nonzero()[:task['drawn'], 0]
                       for c in range(ways)])
  query = torch.tensor([i for i in range(len(labels))
                        if i not in set(support.tolist())])
  logits = r2d2(weights, features[support], features[query],
                {'support_y': labels[support], 'ways': ways}, o)
  return F.cross_entropy(logits, labels[query])


def r2d2_step(weights, task, o):
  """Takes drawn shots where there are such."""
  plain = last_layer(r2d2)[0]
  return (through(r2d2_drawn_loss) if o['max_shots'] else plain)(
    weights, task, o)


def metaoptnet(weights, support, query, task, o):
  """Lee et al. (2019): the dual of the machine, or ridge regression."""
  y, ways = task['support_y'], task['ways']
  if o['head'] == 'ridge':  # the code's labels have height 2
    W = ridge_weights(support, y, ways, o['regulariser'], 2.)
  else:
    W = support.T @ svm_dual(support, y, ways, o['C'], o['svm_ridge'])
  return weights['scale'] * query @ W


def descend(loss, start, steps, rate, create=True):
  """Takes steps of gradient descent; `rate` maps a name to its rate."""
  end = start
  for _ in range(steps):
    slope = grad(loss)(end)
    if not create:  # first order
      slope = {k: g.detach() for k, g in slope.items()}
    end = {k: v - rate(k) * slope[k] for k, v in end.items()}
  return end


def anil(steps):
  """Returns the logits of Raghu et al. (2020) after `steps` of the head."""
  def logits(weights, support, query, task, o):
    head = {k: v for k, v in weights.items() if k.startswith('head/')}
    loss = lambda head: F.cross_entropy(linear(head, support),
                                        task['support_y'])
    head = descend(loss, head, o[steps], lambda _: o['inner_rate'])
    return linear(head, query)
  return logits


# --- Methods in which all layers adapt. ---


def support_loss(task, o, train):
  """Returns weights -> mean cross-entropy of the support.

  Under 'running' a test has the running statistics here too.
  """
  of = task['running'] if o['batch_norm'] == 'running' and not train else None
  x, y = task['support_x'], task['support_y']
  return lambda weights: F.cross_entropy(
    linear(weights, network(weights, x, of)[0]), y)


def query_loss(weights, task, o):
  """Returns the mean cross-entropy of the query in training."""
  features = query_features(weights, task, o['batch_norm'], train=True)
  return F.cross_entropy(linear(weights, features), task['query_y'])


def query_logits(weights, task, o):
  """Returns the logits of the query at test time."""
  return linear(weights, query_features(weights, task, o['batch_norm'],
                                        train=False))


def all_layers(weights):
  """Returns what adapts: backbone and head."""
  return {k: v for k, v in weights.items()
          if k.startswith(('backbone/', 'head/'))}


def maml_loss(weights, task, o):
  """Finn et al. (2017), equation 1."""
  end = descend(support_loss(task, o, True), all_layers(weights),
                o['inner_steps'], lambda _: o['inner_rate'],
                create=not o['first_order'])
  return query_loss(end, task, o)


def maml_predict(weights, task, o):
  """Adapts by the steps of the test."""
  end = descend(support_loss(task, o, False), all_layers(weights),
                o['test_steps'], lambda _: o['inner_rate'])
  return query_logits(end, task, o)


def meta_sgd_end(weights, task, o, train):
  """Takes the one step of Li et al. (2017), equation 2."""
  return descend(support_loss(task, o, train), all_layers(weights), 1,
                 lambda name: weights[f'rates/{name}'])


def by_func(loss):
  """Returns the step of a loss with gradients inside, by torch.func."""
  def step(weights, task, o):
    gradient, value = grad_and_value(loss)(weights, task, o)
    return value, gradient
  return step


def dot(a, b):
  """Returns the inner product of two dictionaries."""
  return sum((a[k] * b[k]).sum() for k in a)


def imaml_inner(theta, loss, steps, l2, o):
  """Returns phi: descent on the regularised support loss, or as imaml_dev."""
  pull = lambda phi: l2 / 2 * dot(*[{k: phi[k] - theta[k] for k in phi}] * 2)
  rate = lambda _: o['inner_rate']
  if not o['public_code']:
    return descend(lambda phi: loss(phi) + pull(phi), theta, steps, rate)
  return descend(pull, descend(loss, theta, steps, rate), 1, rate)


def imaml_step(weights, task, o):
  """Rajeswaran et al. (2019), algorithm 2: conjugate gradients on A x = g.

  They end before a direction of non-positive curvature.
  """
  loss = support_loss(task, o, True)
  phi = imaml_inner(weights, loss, o['inner_steps'], o['l2'], o)
  g, value = grad_and_value(query_loss)(phi, task, o)

  def product(v):  # forward over reverse
    curved = jvp(grad(loss), (phi,), (v,))[1]
    return {k: (1 + o['damping']) * v[k]
            + curved[k] / (o['l2'] + o['curvature_damping']) for k in v}

  x = {k: torch.zeros_like(v) for k, v in g.items()}
  r, p = g, g
  for _ in range(o['cg_steps']):
    Ap, rr = product(p), dot(r, r)
    curvature = dot(p, Ap)
    if curvature <= 0:  # no minimum along p: the answer before it, or g
      x = x if r is not g else g
      break
    x = {k: x[k] + rr / curvature * p[k] for k in x}
    r = {k: r[k] - rr / curvature * Ap[k] for k in r}
    p = {k: r[k] + dot(r, r) / rr * p[k] for k in p}
  return value, x


def imaml_predict(weights, task, o):
  """Adapts as in training, with the l2 of the test."""
  phi = imaml_inner(weights, support_loss(task, o, False), o['test_steps'],
                    o['test_l2'], o)
  return query_logits(phi, task, o)


def prox_inner(start, loss, steps, o):
  """Takes steps of Adam without momentum on loss + the proximal term."""
  end, squares = start, {k: torch.zeros_like(v) for k, v in start.items()}

  def penalty(w):
    if o['public_code']:  # the mean over tensors of their mean squares
      return sum(((w[k] - start[k]) ** 2).mean() for k in w) / len(w)
    return o['l2'] / 2 * sum(((w[k] - start[k]) ** 2).sum() for k in w)

  for i in range(steps):
    slope = grad(lambda w, i=i: loss(w, i) + penalty(w))(end)
    squares = {k: 0.999 * s + 0.001 * slope[k] ** 2
               for k, s in squares.items()}
    end = {k: end[k] - o['inner_rate'] * slope[k] / (
      torch.sqrt(squares[k] / (1 - 0.999 ** (i + 1))) + 1e-8) for k in end}
  return end


def prox_step(weights, task, o):
  """Zhou et al. (2019): w - w_t, on batches of the whole task.

  The loss is the distance 1/2 |w - w_t|^2, lambda folded into the rate.
  """
  images = torch.cat([task['support_x'], task['query_x']])
  labels = joint_labels(task)

  def loss(w, i):
    rows = task['rows'][i]
    return F.cross_entropy(linear(w, network(w, images[rows])[0]),
                           labels[rows])
  end = prox_inner(weights, loss, o['inner_steps'], o)
  moved = {k: weights[k] - end[k] for k in end}
  return dot(moved, moved) / 2, moved


def prox_predict(weights, task, o):
  """Adapts on the whole support at each step."""
  loss = support_loss(task, o, False)
  end = prox_inner(weights, lambda w, _: loss(w), o['test_steps'], o)
  return query_logits(end, task, o)


METHODS = {
  'mtl': (through(mtl_loss), new_head),
  'anil': (last_layer(anil('inner_steps'))[0],
           last_layer(anil('test_steps'))[1]),
  'maml': (by_func(maml_loss), maml_predict),
  'meta_sgd': (
    by_func(lambda w, t, o: query_loss(meta_sgd_end(w, t, o, True), t, o)),
    lambda w, t, o: query_logits(meta_sgd_end(w, t, o, False), t, o)),
  'imaml': (imaml_step, imaml_predict),
  'metaoptnet': last_layer(metaoptnet, lambda o: o['label_smoothing']),
  'r2d2': (r2d2_step, last_layer(r2d2)[1]),
  'minibatch_prox': (prox_step, prox_predict),
  'protonet': last_layer(protonet),
  'whole_class': (through(whole_class_loss), new_head),
}


# --- Heads on given features. ---


def head_step(name, support, query, task, o):
  """Returns (loss [], gradients of both features, logits) of one head."""
  support, query = (x.clone().requires_grad_() for x in (support, query))
  y, ways = task['support_y'], task['ways']
  if name == 'svm':
    W, b = support.T @ svm_dual(support, y, ways, o['C'], o['ridge']), 0.
  else:
    W, b = logistic(support, y, ways, o['C'])
  logits = query @ W + b
  loss = F.cross_entropy(logits, task['query_y'])
  return loss, torch.autograd.grad(loss, (support, query)), logits


# --- Files. ---


def read(path):
  """Returns the cases of IN: [(what is told, name -> tensor)]."""
  with np.load(path) as file:
    cases = [(told, {}) for told in json.loads(str(file['cases']))]
    for key in set(file.files) - {'cases'}:
      i, name = key.split(':')
      cases[int(i)][1][name] = torch.as_tensor(file[key])
  return cases


def compute(case, arrays):
  """Returns name -> tensor, the answers of one case."""
  inside = lambda prefix: {k.removeprefix(prefix): v for k, v in arrays.items()
                           if k.startswith(prefix)}
  task = {k: v.long() if k.endswith(('_y', '_ids', 'rows')) else v
          for k, v in inside('task/').items()} | {
            'ways': case['ways'], 'drawn': case['drawn']}
  if case['kind'] == 'head':
    loss, (by_support, by_query), logits = head_step(
      case['name'], arrays['support'], arrays['query'], task, case['options'])
    return {'loss': loss, 'logits': logits, 'gradient/support': by_support,
            'gradient/query': by_query}
  stored = inside('stats/')
  task['running'] = [(stored[f'norm_{i}/mean'], stored[f'norm_{i}/var'])
                     for i in range(BLOCKS)]
  step, predict = METHODS[case['name']]
  weights = inside('params/')
  loss, gradient = step(weights, task, case['options'])
  return {'loss': loss, 'logits': predict(weights, task, case['options']),
          **{f'gradient/{k}': v for k, v in gradient.items()}}


def main(argv):
  """Reads IN and writes OUT."""
  torch.set_default_dtype(torch.float64)
  out = {f'{i}:{name}': value.detach().numpy()
         for i, case in enumerate(read(argv[0]))
         for name, value in compute(*case).items()}
  np.savez(argv[1], kkt=np.asarray(RESIDUALS), **out)


if __name__ == '__main__':
  main(sys.argv[1:])
