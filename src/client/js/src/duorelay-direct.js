// The entry of the second file that every relay serves: the client loads it where `direct` is on.
export { Direct } from "./direct/index.js";
