"""node_tests.py BIN [-o OUT.tsv] [--all] [--against OLD.tsv] [NAME...]: ONNX's operator tests, packed, run, compared.

The tests are those that `onnx.backend.test.case.node.collect_testcases` generates. Each model is packed as
f32 and run with its inputs as .npy files. Inputs that the operator needs to know when a graph is built
(axes, shapes, scales: whatever pack names as not constant) are given with --const, as an exporter would have
written them; the table says so. By default the expanded copies of functions are left out, and tests with
strings, sequences or types of 8 and 4 bits that ONNX keeps for itself.

Results: ok; ok-const (with --const); wrong; refused (pack said no); run (packed, and failed when run);
untried (inputs or outputs of a type that no .npy holds). Exit 1 if anything is wrong or failed when run.
Outputs come in offshoot's types: f64 and f16 as f32, small integers as i32; values are compared, and whether
they are floats, integers or booleans.
"""
import argparse, collections, concurrent.futures, os, re, subprocess, sys, tempfile, warnings
import numpy as np
warnings.filterwarnings('ignore')
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

# Types that numpy writes to .npy as they are.
PLAIN = {'float32', 'float64', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'uint16', 'uint32', 'bool'}
SHORT = 64


def tries(inputs):
    """Sets of inputs to make constant: none, then the small integers and scales."""
    small = [n for n, v in inputs if v.size <= SHORT and v.ndim <= 1]
    integers = [n for n, v in inputs if n in small and v.dtype.kind in 'iu']
    yield []
    if integers and integers != [n for n, _ in inputs]:
        yield integers
    rest = [n for n in small if n != inputs[0][0]]
    if rest and rest != integers:
        yield rest


def plain(value):
    return isinstance(value, np.ndarray) and str(value.dtype) in PLAIN


def compare(got, want, rtol, atol):
    if got.shape != want.shape:
        return f'shape {got.shape}, expected {want.shape}'
    kind = {'f': 'float', 'i': 'integer', 'u': 'integer', 'b': 'bool'}
    if kind[got.dtype.kind] != kind[want.dtype.kind]:
        return f'type {got.dtype}, expected {want.dtype}'
    if want.dtype.kind in 'iub':
        far = np.abs(got.astype(np.int64) - want.astype(np.int64)).max() if want.size else 0
        return f'differs by {far}' if far else None
    got, want = got.astype(np.float64), want.astype(np.float64)
    if np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
        return None
    return f'largest difference {np.nanmax(np.abs(got - want)):.4g}'


def one(case, binary):
    node = case.model.graph.node[0]
    opset = max((o.version for o in case.model.opset_import if o.domain in ('', 'ai.onnx')), default=0)
    row = [case.name, node.op_type, opset]
    inputs, outputs = case.data_sets[0]
    names = [i.name for i in case.model.graph.input]
    given = list(zip(names, inputs))
    if not all(plain(v) for v in inputs) or not all(plain(v) for v in outputs):
        return row + ['untried', 'a type that no .npy holds']
    if not given:
        return row + ['untried', 'a graph without inputs']
    with tempfile.TemporaryDirectory() as w:
        onnx.save(case.model, f'{w}/m.onnx')
        for name, value in given:
            np.save(f'{w}/{name}.npy', np.ascontiguousarray(value).reshape(value.shape))
        first = None
        for constant in tries(given):
            args = [binary, 'pack', f'{w}/m.onnx', '-o', f'{w}/m.base', '--weights', 'f32']
            for name, value in given:
                if name in constant:
                    flat = value.ravel()
                    text = ','.join(repr(float(v)) if value.dtype.kind == 'f' else str(int(v)) if value.dtype.kind in 'iu' else str(bool(v)).lower() for v in flat)
                    args += ['--const', f'{name}={text}']
            p = subprocess.run(args, capture_output=True, text=True, timeout=300)
            if p.returncode == 0:
                break
            message = (p.stderr or p.stdout).replace(w + '/', '').strip().replace('\n', ' ')
            first = message if first is None or constant else first
        else:
            return row + ['refused', first]
        args = [binary, 'run', '--any-value', f'{w}/m.base', '--output', f'{w}/out']
        for name, _ in given:
            if name not in constant:
                args += ['--input', f'{name}={w}/{name}.npy']
        p = subprocess.run(args, capture_output=True, text=True, timeout=300)
        if p.returncode:
            return row + ['run', (p.stderr or p.stdout).replace(w + '/', '').strip().replace('\n', ' ')]
        faults = []
        for info, want in zip(case.model.graph.output, outputs):
            path = f'{w}/out/' + re.sub('[/:]', '_', info.name) + '.npy'
            if not os.path.exists(path):
                faults.append(f'{info.name}: not written')
                continue
            # What is drawn at random is held to its shape.
            if node.op_type in ('Bernoulli', 'RandomUniformLike') or 'bernoulli' in case.name:
                continue
            # Half precision: some units of the last place, since ONNX computes each step in it.
            half = want.dtype == np.float16
            fault = compare(np.load(path), want, max(case.rtol, 4e-3 if half else 1e-3),
                            max(case.atol, 1e-3 if half else 1e-5))
            if fault:
                faults.append(f'{info.name}: {fault}')
        if faults:
            return row + ['wrong', '; '.join(faults)]
        return row + (['ok-const', 'with --const ' + ' '.join(constant)] if constant else ['ok', ''])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('binary')
    parser.add_argument('names', nargs='*')
    parser.add_argument('-o', '--out')
    parser.add_argument('--all', action='store_true', help='the expanded copies of functions too')
    parser.add_argument('--against', help='an older table: only its tests, and what changed')
    args = parser.parse_args()
    old = {}
    if args.against:
        old = {r[0]: r for r in (line.rstrip('\n').split('\t') for line in open(args.against))}
    cases = [c for c in collect_testcases(None) if c.data_sets]
    if args.names:
        cases = [c for c in cases if any(re.search(n, c.name) for n in args.names)]
    elif old:
        cases = [c for c in cases if c.name in old]
    elif not args.all:
        cases = [c for c in cases if '_expanded' not in c.name]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda c: one(c, args.binary), cases))
    counts = collections.Counter(r[3] for r in rows)
    print(', '.join(f'{n} {k}' for k, n in counts.most_common()))
    if args.out:
        with open(args.out, 'w') as f:
            f.write('test\top\topset\tresult\tmessage\n')
            f.writelines('\t'.join(map(str, r)).replace('\r', ' ') + '\n' for r in sorted(rows, key=lambda r: r[0]))
    for row in rows:
        if row[3] in ('wrong', 'run'):
            print(*row, sep='\t')
        elif row[0] in old and old[row[0]][3] == 'ok' and not row[3].startswith('ok'):
            print('was ok:', *row, sep='\t')
    sys.exit(bool(counts['wrong'] + counts['run']))


main()
