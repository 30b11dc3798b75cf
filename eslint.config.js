import safeql from "@ts-safeql/eslint-plugin/config";
import tseslint from "typescript-eslint";

// Editors have no database: without this variable all but the statements is checked. `npm run check` sets it.
const databaseUrl = process.env.CHECK_DATABASE_URL;

// Of a union of literals it would make IN ('a', 'b'), which no cast may follow. Our names of such unions end in Code.
const textCodes = { parameter: { regex: '(?:"[^"]*"|\\w*Code)(?: \\| (?:"[^"]*"|\\w*Code|null))*' }, return: "string" };

const sqlTokens = {
  text: textCodes,
  uuid: "UuidSqlToken",
  timestamptz: "TimestampSqlToken",
  date: "DateSqlToken",
  json: "JsonSqlToken",
  jsonb: "JsonBinarySqlToken",
  bytea: "BinarySqlToken",
  ...Object.fromEntries(
    ["uuid", "text", "bool", "int2", "int4", "int8", "float8", "timestamptz", "jsonb", "bytea"].map((type) => [
      `_${type}`,
      `ArraySqlToken<"${type}">`,
    ]),
  ),
};

const statements = safeql.configs.connections({
  databaseUrl,
  targets: [{ tag: { regex: "sql\\.(?:unsafe|(?:type|typeAlias|prepared)\\([^]*\\))" }, skipTypeAnnotations: true }],
  overrides: { types: sqlTokens },
});

export default tseslint.config(
  { ignores: ["src/gen", "coverage", ".data", "test/check/fixtures"] },
  {
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      eqeqeq: "error",
      "no-console": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "@typescript-eslint/consistent-type-imports": ["error", { fixStyle: "inline-type-imports" }],
      "@typescript-eslint/no-import-type-side-effects": "error",
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true, allowBoolean: true }],
      // `return call.end(reason)` leaves, and says so.
      "@typescript-eslint/no-confusing-void-expression": "off",
      // A handler is asynchronous by its type, whether it waits or not.
      "@typescript-eslint/require-await": "off",
      // Our objects are closures: their methods have no `this` to lose.
      "@typescript-eslint/unbound-method": "off",
      // The parameter is what says which message a decoder makes.
      "@typescript-eslint/no-unnecessary-type-parameters": "off",
    },
  },
  {
    files: ["src/**/*.ts"],
    rules: {
      "max-lines": ["error", { max: 300, skipBlankLines: true, skipComments: true }],
      "no-restricted-syntax": [
        "error",
        {
          selector: 'CallExpression[callee.object.name="sql"][callee.property.name="type"] > CallExpression.arguments',
          message: "Make the row's schema once, outside: zod compiles a new one at each call, which costs 40 µs.",
        },
      ],
    },
  },
  {
    files: ["test/**/*.ts"],
    rules: {
      // A test's own message is the failure; what checks and benchmarks have to say is their output.
      "@typescript-eslint/no-non-null-assertion": "off",
      "no-console": "off",
    },
  },
  databaseUrl ? { files: ["src/**/*.ts", "test/check/fixtures/**/*.ts"], ...statements } : {},
);
